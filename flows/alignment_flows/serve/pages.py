"""The commands `align rank` and `align chat`: open the model and the feedback store, and serve a page."""

from alignment_core.config import PipelineConfig
from alignment_core.errors import ConfigError
from alignment_core.feedback import FeedbackStore, open_feedback
from alignment_core.feedback.pages import web
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_flows.serve.local import configure_prefect
from alignment_flows.serve.vote_events import vote_notifier

STATE = ".pages"
"""Folder in the artifact store for the state of the pages, so that raters stay known after a restart."""


def serve_chat(config: PipelineConfig, model: str, host: str, port: int) -> None:
    """Serve the chat page until Ctrl-C.

    Raises:
        ConfigError: other machines could connect without a password, or the port is in use.
        ArtifactError: the model does not exist.
        FeedbackError: the feedback store cannot be opened.
    """
    web.password_for(host)
    from alignment_core.artifacts import ArtifactStore
    from alignment_core.feedback.pages.chat_model import ChatModel

    chat_model = ChatModel(ArtifactStore(config.store), model, config.device, config.chat)
    with _open_store(config) as store:
        from alignment_core.feedback.pages.chat import chat_page

        page = chat_page(chat_model, store, config.chat)
        state = config.store / STATE / "chat"
        web.serve(page, title="Chat", host=host, port=port, state=state, close=chat_model.close)


def serve_rank(config: PipelineConfig, host: str, port: int) -> None:
    """Serve the ranking page until Ctrl-C.

    Raises:
        ConfigError, FeedbackError: see `serve_chat`.
    """
    web.password_for(host)
    with _open_store(config) as store:
        from alignment_core.feedback.pages.rank import rank_page

        state = config.store / STATE / "rank"
        web.serve(rank_page(store), title="Rank", host=host, port=port, state=state, close=lambda: None)


def rank_by_ai(config: PipelineConfig, by: str) -> int:
    """Let a model rank the tasks that it has not ranked yet, and return the number of new rankings.

    Args:
        config: the settings of a run.
        by: `endpoint`, or a reward model as `rank_by_reward_model` accepts it.

    Raises:
        ConfigError: the settings do not define the model, or the model gives no verdict.
        ArtifactError: the reward model does not exist.
        FeedbackError: the feedback store cannot be opened.
    """
    from alignment_core.stages.shared.ai_rater import rank_by_endpoint, rank_by_reward_model

    endpoint = config.evaluation.endpoint
    if by == "endpoint" and endpoint is None:
        raise ConfigError(
            "`--by endpoint` needs an endpoint, and none is set",
            where="evaluation.endpoint",
            do="Set evaluation.endpoint in the config file",
        )
    with _open_store(config) as store:
        if endpoint is not None and by == "endpoint":
            return rank_by_endpoint(store, endpoint, config.store / STATE / "endpoint", Silent())
        return rank_by_reward_model(store, config, load_registry(), by, Silent())


def _open_store(config: PipelineConfig) -> FeedbackStore:
    """Open the feedback store of the settings. It sends an event to Prefect for each vote."""
    configure_prefect()
    with open_feedback(config.feedback) as store:
        place = store.place
    return open_feedback(config.feedback, vote_notifier(place))
