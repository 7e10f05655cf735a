"""One module a command of the command line; bertfast/cli.py declares their options and turns their errors into lines."""
