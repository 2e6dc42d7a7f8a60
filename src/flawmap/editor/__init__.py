"""The browser's editor of masks: `flawmap masks edit`. Torch-free; needs the extra `serve`."""
