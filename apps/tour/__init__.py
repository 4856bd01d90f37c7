"""The tour: a teacher becomes a student in every installed domain, offline, on one page."""
