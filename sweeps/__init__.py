"""Many runs: studies, searches and final trainings on Ray. The only package that imports Ray."""
