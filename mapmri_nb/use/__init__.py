"""
What surrounds the method: files, the command line, error bars, directions, pictures, clusters.
"""
