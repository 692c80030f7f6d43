"""What `python -m training.benchmark` measures, a file for each subject."""
