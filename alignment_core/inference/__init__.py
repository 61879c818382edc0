"""Models that are loaded to answer, without a stage."""
