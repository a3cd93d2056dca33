"""What users who share an attribute value or a tag click on: counts of such groups, candidates and columns."""
