"""One file per kind of stage: the fields a user writes under its member name."""
