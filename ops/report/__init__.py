"""`pippin report`: teacher, student before and student after, measured side by side."""
