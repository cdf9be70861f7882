"""The commands of `veto-pl`, one file each."""
