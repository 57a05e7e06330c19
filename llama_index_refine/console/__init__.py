"""What the commands share: errors in one line, ranked lists, and the command `search`."""
