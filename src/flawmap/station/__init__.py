"""The line: a service with its page, a ledger of every verdict, and the PLC. Works without torch."""
