"""What people see of runs while they are carried out: bars, lines and the page."""
