"""Turns run directories, or sample files of other tools, into tables, statistics, plots and one report; loads no model."""
