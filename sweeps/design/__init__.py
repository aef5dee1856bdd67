"""What a study asks for: its runs, their branches and samplings. Nothing here imports Ray."""
