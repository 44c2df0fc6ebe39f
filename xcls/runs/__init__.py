"""What runs are and leave behind: record, hash, folder, status. Standard library only."""
