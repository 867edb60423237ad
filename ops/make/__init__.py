"""`pippin make-data`: rows to learn from, made by a teacher."""
