"""course_lib: a library that grows, day by day, into an LLM inference engine, and the answer key of the course."""

__version__ = "0.1.0"
