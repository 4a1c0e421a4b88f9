"""From files anywhere to clean, split rows in five formats, and from rows to token ids."""
