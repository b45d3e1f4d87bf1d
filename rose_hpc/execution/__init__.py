"""Where attempts run: the embedded engine, the pilot, and what runs in a rank."""
