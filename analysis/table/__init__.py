"""Any table of runs: what it says, and what it cannot say."""
