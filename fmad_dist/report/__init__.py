"""What an evaluation leaves for its readers: files of numbers, tables, and one self-contained HTML page."""
