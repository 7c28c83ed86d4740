"""Images that nobody has labelled: found, scored on any number of processes, and written as a table and pictures."""
