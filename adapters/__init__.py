"""What maskguided knows of architectures by name, one file each; importable as maskguided.adapters."""
