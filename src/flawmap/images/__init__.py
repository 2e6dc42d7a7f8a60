"""Where pictures come from and what becomes of them before a detector sees them: find, decode, split, audit."""
