"""The commands `align rank` and `align chat`: open the model and the feedback store, and serve a page."""

from collections.abc import Callable, Sequence

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.catalogue import PROMOTABLE, catalogue
from alignment_core.config import PipelineConfig
from alignment_core.errors import ArtifactError, ConfigError
from alignment_core.feedback import FeedbackStore, open_feedback
from alignment_core.feedback.pages import web
from alignment_core.inference.model_parts import NamedModel, trained_model
from alignment_core.planning.unpacked_base import BASE
from alignment_core.planning.untouched_base import untouched_base
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_flows.serve.local.server import configure_prefect
from alignment_flows.serve.local.settings import prepared
from alignment_flows.serve.vote_events import vote_notifier

STATE = ".pages"
"""Folder in the artifact store for the state of the pages, so that raters stay known after a restart."""

KEY_LENGTH, NEWEST = 12, 10
"""Length of the prefix of a key, and number of models without an alias, among the models that can be chosen."""


def serve_chat(
    config: PipelineConfig, references: Sequence[str], host: str, port: int, end: web.EndButton | None = None
) -> None:
    """Serve the chat page until Ctrl-C.

    Args:
        config: the settings of a run, resolved.
        references: the one or two models that answer first: aliases, names of runs, keys, prefixes of keys, `latest`
            for the newest aligned model of the run with this name, or `base` for the base model of the settings.
            Visitors can choose others.
        host: address to listen on.
        port: port to listen on. 0 picks a free one.
        end: a button that ends the page, or None.

    Raises:
        ConfigError: other machines could connect without a password, the port is in use, or a model is repeated.
        ArtifactError: a model does not exist.
        ModelError: the base model does not exist, or cannot be used as the settings ask.
        FeedbackError: the feedback store cannot be opened.
    """
    web.password_for(host)
    if len(set(references)) != len(references):
        problem = "both models are the same"
        raise ConfigError(problem, where="--beside", got=references[0], do="Name two models, such as one and `base`")
    from alignment_core.feedback.pages.chat_model import ChatModel
    from alignment_core.feedback.pages.chat_models import ChatModels

    def open_model(name: str) -> ChatModel:
        return ChatModel(name, _finder(config, name), config.device, config.chat)

    try:
        models = ChatModels(references, open_model, lambda: _choices(config))
    except ArtifactError as error:
        base = f"open the base model with `--model {BASE}`"
        error.do = f"{error.do}, or {base}" if error.do else base.capitalize()
        raise

    with _open_store(config) as store:
        from alignment_core.feedback.pages.chat import chat_page

        page = chat_page(models, store, config.chat, end)
        web.serve(page, title="Chat", host=host, port=port, state=config.store / STATE / "chat", close=models.close)


def _choices(config: PipelineConfig) -> list[str]:
    """Return the models that a visitor can choose: the aliases of the store, its newest models, and the base model."""
    store = ArtifactStore(config.store, config.remote)
    if not store.root.is_dir():
        return [BASE]
    found = catalogue(store)
    aliases = sorted({name for entry in found for name in entry.aliases if entry.artifact.kind in PROMOTABLE})
    unnamed = [entry.artifact.key for entry in found if entry.artifact.kind in PROMOTABLE and not entry.aliases]
    return [*aliases, BASE, *(key[:KEY_LENGTH] for key in unnamed[:NEWEST])]


def _finder(config: PipelineConfig, reference: str) -> Callable[[], NamedModel]:
    """Return a function that finds the model with this name, which a promotion may have changed since the last time."""
    if reference == BASE:
        base = untouched_base(prepared(config), load_registry())
        return lambda: base
    store, trusted = ArtifactStore(config.store, config.remote), config.model.trust_remote_code
    return lambda: trained_model(store, reference, config.name, trusted=trusted)


def serve_rank(config: PipelineConfig, host: str, port: int, end: web.EndButton | None = None) -> None:
    """Serve the ranking page until Ctrl-C. For the arguments, see `serve_chat`.

    Raises:
        ConfigError, FeedbackError: see `serve_chat`.
    """
    web.password_for(host)
    with _open_store(config) as store:
        from alignment_core.feedback.pages.rank import rank_page

        page, state = rank_page(store, config.guidelines, end), config.store / STATE / "rank"
        web.serve(page, title="Rank", host=host, port=port, state=state, close=lambda: None)


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
