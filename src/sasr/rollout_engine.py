"""Whether vLLM can make the rollouts of a run, found out before the model is loaded."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.client import HTTPException
from importlib.util import find_spec
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import torch

from .config import SASRConfig
from .errors import InputError

# Without the first word vLLM has no endpoints for new weights, without the second setting its log-probabilities are
# those before temperature, top_p and the like, which TRL's correction would take for those of the rollouts.
SERVER_COMMAND = (
    'VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config \'{"backend": "nccl"}\' '
    "--logprobs-mode processed_logprobs"
)
_PAUSE = 2.0  # seconds between two looks at a server that starts
_PATIENCE = 60.0  # seconds for an answer; the settings take some the first time


def check_rollout_engine(args: SASRConfig, say: Callable[[str], None], is_main: bool = True) -> None:
    """Raise `InputError` if rollouts are to be made by vLLM where that cannot work.

    Args:
        args ([`SASRConfig`]): The settings of the run.
        say (`Callable[[str], None]`): Tells the user that a server is waited for, as TRL would do in silence.
        is_main (`bool`): This process is the one that talks to a server.
    """
    if not args.use_vllm:
        return
    check_installed()
    check_device(args)
    if args.vllm_mode == "server" and is_main:
        check_server(args, say)


def check_installed() -> None:
    """Raise `InputError` if there is no vLLM."""
    if find_spec("vllm") is None:
        raise InputError("use_vllm: vLLM is not installed: pip install vllm, or leave use_vllm out")


def check_device(args: SASRConfig) -> None:
    """Raise `InputError` if vLLM cannot be given the weights of a model that is trained here."""
    if args.use_cpu or not torch.accelerator.is_available():
        raise InputError("use_vllm needs an accelerator, since on a CPU vLLM cannot be given new weights: leave it out")
    kind = torch.accelerator.current_accelerator().type
    if args.vllm_mode == "server" and kind != "cuda":
        raise InputError(f"vllm_mode server: TRL sends weights by NCCL, from CUDA devices, not {kind}: use colocate")


def check_server(args: SASRConfig, say: Callable[[str], None]) -> None:
    """Wait for the server of `vllm_mode: server`, `vllm_server_timeout` seconds at most. Raises `InputError` if there
    is none then, or if it was not started as [`SERVER_COMMAND`] says."""
    url = args.vllm_server_base_url
    if url is None:
        url = f"http://{args.vllm_server_host}:{args.vllm_server_port}"
    elif not url.startswith(("http://", "https://")) or url.endswith("/"):
        raise InputError(f"vllm_server_base_url is {url!r}: it must be like http://10.0.0.3:8000, no slash at the end")
    _wait(url, args.vllm_server_timeout, say)
    config = _config(url)
    if config.get("weight_transfer_config") is None:
        raise InputError(f"the vLLM server at {url} takes no new weights: start it with {SERVER_COMMAND}")
    model = config.get("model_config") or {}
    mode, longest = model.get("logprobs_mode"), model.get("max_model_len")
    if args.vllm_importance_sampling_correction and mode != "processed_logprobs":
        raise InputError(
            f"the vLLM server at {url} has --logprobs-mode {mode}, with which vllm_importance_sampling_correction is "
            "wrong: start it with --logprobs-mode processed_logprobs, or set the correction to false"
        )
    if longest is not None and longest <= args.max_completion_length:
        raise InputError(
            f"the vLLM server at {url} takes {longest} tokens, which leaves no room for a prompt with "
            f"max_completion_length {args.max_completion_length}: start it with a larger --max-model-len, or lower that"
        )


def _wait(url: str, timeout: float, say: Callable[[str], None]) -> None:
    end, told = time.monotonic() + timeout, False
    while (trouble := _trouble(f"{url}/health")) is not None:
        left = end - time.monotonic()
        if left <= 0:
            raise InputError(
                f"vllm_mode server: no vLLM server at {url} within {timeout:g} s ({trouble}): start it with "
                f"{SERVER_COMMAND}, or mend vllm_server_host and vllm_server_port"
            )
        if not told:
            say(f"waiting for a vLLM server at {url} ({trouble}), for {timeout:g} s at most (vllm_server_timeout)")
            told = True
        time.sleep(min(_PAUSE, left))


def _trouble(url: str) -> str | None:
    """Why there is no good answer from there, or `None`."""
    try:
        with urlopen(url, timeout=_PATIENCE):
            return None
    except HTTPError as error:
        return f"it answers {error.code} {error.reason}"
    except URLError as error:
        return str(getattr(error.reason, "strerror", None) or error.reason)
    except (OSError, HTTPException, ValueError) as error:
        return str(error) or type(error).__name__


def _config(url: str) -> dict[str, Any]:
    """vLLM's configuration, as the server tells it."""
    try:
        with urlopen(f"{url}/server_info?config_format=json", timeout=_PATIENCE) as answer:
            config = json.load(answer)["vllm_config"]
            if not isinstance(config, dict):
                raise TypeError(f"vllm_config is {type(config).__name__}")
            return config
    except HTTPError as error:
        if error.code == 404:
            raise InputError(
                f"what answers at {url} is no vLLM server, or one without VLLM_SERVER_DEV_MODE=1 in its environment: "
                f"start it with {SERVER_COMMAND}"
            ) from None
        raise InputError(f"the vLLM server at {url} does not tell its settings: {error.code} {error.reason}") from None
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise InputError(f"what answers at {url} is no vLLM server that TRL can use: {error!r}") from None
