"""The report: records in, tables, a verdict, plots and one page out. No torch."""
