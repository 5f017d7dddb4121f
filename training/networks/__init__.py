"""The teacher and the student that are trained, and their first weights."""
