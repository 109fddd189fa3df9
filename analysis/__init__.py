"""From run directories, or sample files of other tools, to tables, statistics, plots and one report. No model here."""
