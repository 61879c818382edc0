"""What the cases do, one file per question, and the runs that they share."""
