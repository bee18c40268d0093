"""Tests that others wrote, run on backupfs and on the disk beside it."""
