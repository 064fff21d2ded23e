"""Files and data sets to documents to token blocks."""
