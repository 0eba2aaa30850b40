"""The engine: from messages to streamed text."""

from course_lib.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "course_lib.decode.params": ["SamplingParams", "StructuredOutputsParams"],
        "course_lib.engine.async_engine": ["AsyncEngine", "EngineDead", "Health"],
        "course_lib.engine.chat_template": ["ChatTemplate"],
        "course_lib.engine.engine": ["Engine", "EngineConfig"],
        "course_lib.engine.llm": ["LLM", "Completion"],
        "course_lib.engine.model_runner": ["ModelRunner"],
        "course_lib.engine.request": ["Output", "Request"],
        "course_lib.engine.runner": ["Runner"],
        "course_lib.engine.scheduler": ["ImpossibleRequest", "Schedule", "Scheduler"],
    },
)
