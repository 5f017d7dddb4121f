"""One class a task: its signature and its output."""
