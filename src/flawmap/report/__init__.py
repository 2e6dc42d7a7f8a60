"""Pictures and pages: the colours of a map, drawings in SVG, and the report as one HTML file.

Arrays in, text out: nothing here knows a model, and nothing here needs torch or a network.
"""
