"""Measuring, and the commands `cmm bench`, `cmm demo` and `cmm info`.

harness makes layers and times them, check holds their results against float64 first, floors finds what the machine
allows, table prints the paper's Table 2, plot draws.
"""
