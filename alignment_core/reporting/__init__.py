"""Report pages that open offline: charts as SVG, responses with the differing words marked, and the page around them.

A chart is plain SVG whose colors come from the page's style sheet (`alignment_core.palette`), so that it follows light
and dark mode. Every chart also says in words and in numbers what it shows. Nothing here needs torch or Prefect.
"""
