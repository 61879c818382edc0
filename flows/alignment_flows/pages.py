"""The commands `align rank` and `align chat`: what they open, in order, and what they serve."""

from alignment_core.config import PipelineConfig
from alignment_core.errors import ConfigError
from alignment_core.feedback import FeedbackStore, open_feedback, web
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_flows.feedback_events import tell_prefect
from alignment_flows.local import quieten_prefect

STATE = ".pages"
"""Folder in the artifact store that remembers visitors over a restart."""


def serve_chat(config: PipelineConfig, model: str, host: str, port: int) -> None:
    """Serve the chat page until Ctrl-C.

    Raises:
        ConfigError: others could reach it without a password, or the port is taken.
        ArtifactError: there is no such model.
        FeedbackError: the feedback store cannot be opened.
    """
    web.password_for(host)
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.feedback.chat_model import ChatModel

    chat_model = ChatModel(ArtifactStore(config.store), model, config.device, config.chat)
    with _open_store(config) as store:
        from alignment_core.feedback.chat_page import chat_page

        page = chat_page(chat_model, store, config.chat)
        state = config.store / STATE / "chat"
        web.serve(page, title="Chat", host=host, port=port, state=state, close=chat_model.close)


def serve_rank(config: PipelineConfig, host: str, port: int) -> None:
    """Serve the ranking page until Ctrl-C.

    Raises:
        ConfigError, FeedbackError: as for `serve_chat`.
    """
    web.password_for(host)
    with _open_store(config) as store:
        from alignment_core.feedback.rank_page import rank_page

        state = config.store / STATE / "rank"
        web.serve(rank_page(store), title="Rank", host=host, port=port, state=state, close=lambda: None)


def rank_by_ai(config: PipelineConfig, by: str) -> int:
    """Let a model rank what it has not ranked yet; returns how much that was.

    Args:
        config: the settings of a run.
        by: `endpoint`, or a reward model as `rank_by_reward_model` takes it.

    Raises:
        ConfigError: the settings name no such model, or it gives no verdict.
        ArtifactError: there is no such reward model.
        FeedbackError: the feedback store cannot be opened.
    """
    from alignment_core.stages.ai_rater import rank_by_endpoint, rank_by_reward_model

    endpoint = config.evaluation.endpoint
    if by == "endpoint" and endpoint is None:
        raise ConfigError("the settings name no model that could rank", where="evaluation.endpoint", do="Set it")
    with _open_store(config) as store:
        if endpoint is not None and by == "endpoint":
            return rank_by_endpoint(store, endpoint, config.store / STATE / "endpoint", Silent())
        return rank_by_reward_model(store, config, load_registry(), by, Silent())


def _open_store(config: PipelineConfig) -> FeedbackStore:
    """The feedback store of the settings, which tells Prefect of its votes."""
    quieten_prefect()
    with open_feedback(config.feedback) as store:
        place = store.place
    return open_feedback(config.feedback, tell_prefect(place))
