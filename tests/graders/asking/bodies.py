# ruff: noqa: E501
"""What LLM servers and providers answer when they do not answer: statuses, bodies and headers, as they word them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llama_index_refine.graders.asking.failures import Remedy

WAIT, ADAPT, SKIP, STOP = Remedy.WAIT, Remedy.ADAPT, Remedy.SKIP, Remedy.STOP


@dataclass(frozen=True)
class Refusal:
    """A response that is no answer, and what is to be made of it: `word` stands in the advice."""

    status: int
    body: Any
    remedy: Remedy
    word: str = ""
    options: frozenset[str] = frozenset()
    wait: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def openai(message: str, type_: str | None = "invalid_request_error", code: Any = None, param: Any = None) -> Any:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def vllm(message: str, type_: str = "BadRequestError", code: int = 400) -> Any:
    return {"object": "error", "message": message, "type": type_, "param": None, "code": code}


def anthropic(type_: str, message: str) -> Any:
    return {"type": "error", "error": {"type": type_, "message": message}, "request_id": "req_011"}


def google(code: int, status: str, message: str, *details: Any) -> Any:
    return [{"error": {"code": code, "message": message, "status": status, "details": list(details)}}]


def mistral(loc: str) -> Any:
    detail = [{"type": "extra_forbidden", "loc": ["body", loc], "msg": "Extra inputs are not permitted", "input": True}]
    return {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error", "param": None}


def openrouter(code: int, message: str, **metadata: Any) -> Any:
    return {"error": {"message": message, "code": code, "metadata": metadata}, "user_id": "user_2"}


def retry_info(delay: str) -> Any:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def quota(quota_id: str) -> Any:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota_id}]}


LOGPROBS, TOP, TEMPERATURE = frozenset({"logprobs"}), frozenset({"top_logprobs"}), frozenset({"temperature"})
NO_QUOTA = "You exceeded your current quota, please check your plan and billing details."
FILTERED = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."

REFUSALS: dict[str, Refusal] = {
    "OpenAI: another limit": Refusal(
        400,
        openai(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            code="unsupported_parameter",
            param="max_tokens",
        ),
        ADAPT,
        options=frozenset({"max_tokens"}),
    ),
    "OpenAI: temperature": Refusal(
        400,
        openai(
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported.",
            code="unsupported_value",
            param="temperature",
        ),
        ADAPT,
        options=TEMPERATURE,
    ),
    "OpenAI: log-probabilities": Refusal(
        403, openai("You are not allowed to request logprobs from this model"), ADAPT, options=LOGPROBS
    ),
    "OpenAI: no credit": Refusal(
        429,
        openai(NO_QUOTA, "insufficient_quota", "insufficient_quota"),
        STOP,
        "credit",
        wait=1.0,
        headers={"retry-after": "1"},
    ),
    "OpenAI: rate limit": Refusal(
        429,
        openai("Rate limit reached for gpt-4o. Please try again in 20ms.", "tokens", "rate_limit_exceeded"),
        WAIT,
        "rate limit",
        wait=0.02,
        headers={"retry-after-ms": "20", "retry-after": "1"},
    ),
    "OpenAI: rate limit, said in the text": Refusal(
        429,
        openai("Rate limit reached. Please try again in 1m2.5s.", "requests", "rate_limit_exceeded"),
        WAIT,
    ),
    "OpenAI: key": Refusal(
        401, openai("Incorrect API key provided: sk-12345.", code="invalid_api_key"), STOP, "api_key"
    ),
    "OpenAI: model": Refusal(
        404,
        openai("The model `gpt-9` does not exist or you do not have access to it.", code="model_not_found"),
        STOP,
        "model",
    ),
    "OpenAI: too long": Refusal(
        400,
        openai(
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 8227 tokens.",
            code="context_length_exceeded",
            param="messages",
        ),
        SKIP,
        "too long",
    ),
    "OpenAI: down": Refusal(
        500, openai("The server had an error while processing your request", "server_error"), WAIT, "500"
    ),
    "Azure: content filter": Refusal(
        400,
        {
            "error": {
                "message": FILTERED,
                "type": None,
                "param": "prompt",
                "code": "content_filter",
                "status": 400,
                "innererror": {
                    "code": "ResponsibleAIPolicyViolation",
                    "content_filter_result": {"hate": {"filtered": True}},
                },
            }
        },
        SKIP,
        "content filter",
    ),
    "Azure: deployment": Refusal(
        404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}}, STOP, "model"
    ),
    "Azure: key": Refusal(
        401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key."}}, STOP, "api_key"
    ),
    "Azure: rate limit": Refusal(
        429,
        {"error": {"code": "429", "message": "Requests have exceeded call rate limit. Please retry after 26 seconds."}},
        WAIT,
    ),
    "Anthropic: no credit": Refusal(
        400,
        anthropic("invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
        STOP,
        "credit",
    ),
    "Anthropic: key": Refusal(401, anthropic("authentication_error", "invalid x-api-key"), STOP, "api_key"),
    "Anthropic: model": Refusal(404, anthropic("not_found_error", "model: claude-9"), STOP, "model"),
    "Anthropic: overloaded": Refusal(529, anthropic("overloaded_error", "Overloaded"), WAIT, "529"),
    "Anthropic: filter": Refusal(
        400, anthropic("invalid_request_error", "Output blocked by content filtering policy"), ADAPT, "HTTP 400"
    ),
    "Anthropic: too long": Refusal(
        400, anthropic("invalid_request_error", "prompt is too long: 205000 tokens > 200000 maximum"), SKIP, "too long"
    ),
    "Anthropic: temperature": Refusal(
        400,
        anthropic("invalid_request_error", "`temperature` and `top_p` cannot both be specified for this model."),
        ADAPT,
        options=TEMPERATURE,
    ),
    "Gemini: by the minute": Refusal(
        429,
        google(
            429,
            "RESOURCE_EXHAUSTED",
            f"{NO_QUOTA}\nPlease retry in 38.922534355s.",
            quota("GenerateRequestsPerMinutePerProjectPerModel-FreeTier"),
            retry_info("38.5s"),
        ),
        WAIT,
        "rate limit",
        wait=38.5,
    ),
    "Gemini: by the day": Refusal(
        429,
        google(
            429, "RESOURCE_EXHAUSTED", NO_QUOTA, quota("GenerateRequestsPerDayPerProjectPerModel"), retry_info("9s")
        ),
        STOP,
        "today",
        wait=9.0,
    ),
    "Gemini: key": Refusal(
        400,
        google(
            400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", {"reason": "API_KEY_INVALID"}
        ),
        STOP,
        "api_key",
    ),
    "Gemini: model": Refusal(
        404, google(404, "NOT_FOUND", "models/gemini-9 is not found for API version v1main"), STOP, "model"
    ),
    "Gemini: log-probabilities": Refusal(
        400,
        google(400, "INVALID_ARGUMENT", "Logprobs is not enabled for models/gemini-2.5-pro"),
        ADAPT,
        options=LOGPROBS,
    ),
    "Gemini: where": Refusal(
        400, google(400, "FAILED_PRECONDITION", "User location is not supported for the API use."), ADAPT, "HTTP 400"
    ),
    "Mistral: log-probabilities": Refusal(422, mistral("logprobs"), ADAPT, options=LOGPROBS),
    "Mistral: in a string": Refusal(
        422,
        {
            "object": "error",
            "message": '{"detail":[{"type":"extra_forbidden","loc":["body","top_logprobs"],"msg":"Extra inputs"}]}',
            "type": "internal_error_proxy",
            "code": "1000",
        },
        ADAPT,
        options=TOP,
    ),
    "Mistral: model": Refusal(
        400, {"object": "error", "message": "Invalid model: m", "type": "invalid_model", "code": "1500"}, STOP, "model"
    ),
    "Mistral: tier": Refusal(
        429,
        {"object": "error", "message": "Service tier capacity exceeded.", "type": "service_tier_capacity_exceeded"},
        WAIT,
    ),
    "Mistral: too long": Refusal(
        400,
        {
            "object": "error",
            "message": "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",
        },
        SKIP,
        "too long",
    ),
    "OpenRouter: no credit": Refusal(402, openrouter(402, "Insufficient credits."), STOP, "credit"),
    "OpenRouter: little credit": Refusal(
        402, openrouter(402, "This request requires more credits, or fewer max_tokens."), STOP, "credit"
    ),
    "OpenRouter: moderation": Refusal(
        403,
        openrouter(403, "m requires moderation and your input was flagged", reasons=["violence"], flagged_input="rain"),
        SKIP,
        "content filter",
    ),
    "OpenRouter: behind it": Refusal(
        400,
        openrouter(
            400,
            "Provider returned error",
            raw='{"error": {"message": "logprobs are not supported", "param": "logprobs", "code": null}}',
            provider_name="P",
        ),
        ADAPT,
        options=LOGPROBS,
    ),
    "OpenRouter: nobody": Refusal(
        404, openrouter(404, "No endpoints found that can handle the requested parameters."), ADAPT
    ),
    "OpenRouter: nobody has the model": Refusal(404, openrouter(404, "No endpoints found for x/y."), STOP, "model"),
    "vLLM: fewer": Refusal(400, vllm("Cannot request more than 5 logprobs."), ADAPT, options=LOGPROBS),
    "vLLM: fewer, newer": Refusal(
        400,
        {"error": vllm("Requested sample logprobs of 20, which is greater than max allowed: 5")},
        ADAPT,
        options=LOGPROBS,
    ),
    "vLLM: model": Refusal(404, vllm("The model `m` does not exist.", "NotFoundError", 404), STOP, "model"),
    "vLLM: too long": Refusal(
        400,
        vllm(
            "This model's maximum context length is 4096 tokens. However, you requested 4100 tokens (4084 in the "
            "messages, 16 in the completion). Please reduce the length of the messages or completion."
        ),
        SKIP,
        "too long",
    ),
    "vLLM: no room": Refusal(400, vllm("max_tokens must be at least 1, got -186."), SKIP, "too long"),
    "SGLang: too long": Refusal(
        400,
        vllm("The input (61709 tokens) is longer than the model's context length (40960 tokens)."),
        SKIP,
        "too long",
    ),
    "llama.cpp: too long": Refusal(
        400,
        {
            "error": {
                "code": 400,
                "message": "request (4390 tokens) exceeds the available context size (4096 tokens), try increasing it",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 4390,
                "n_ctx": 4096,
            }
        },
        SKIP,
        "too long",
    ),
    "llama.cpp: too long, as its own failure": Refusal(
        500,
        {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}},
        SKIP,
        "too long",
    ),
    "llama.cpp: too long for a reranker": Refusal(
        500,
        {
            "error": {
                "code": 500,
                "message": "input (1203 tokens) is too large to process. increase the physical batch size "
                "(current batch size: 512)",
                "type": "server_error",
            }
        },
        SKIP,
        "too long",
    ),
    "llama.cpp: loading": Refusal(
        503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, WAIT, "503"
    ),
    "llama.cpp: key": Refusal(
        401, {"error": {"code": 401, "message": "Invalid API Key", "type": "authentication_error"}}, STOP, "api_key"
    ),
    "Ollama: model": Refusal(404, openai('model "m" not found, try pulling it first', "api_error"), STOP, "model"),
    "Ollama: its own form": Refusal(404, {"error": "model 'm' not found"}, STOP, "model"),
    "Ollama: memory": Refusal(
        500,
        openai("model requires more system memory (5.6 GiB) than is available (3.1 GiB)", "api_error"),
        WAIT,
        "HTTP 500",
    ),
    "LiteLLM: parameters": Refusal(
        400,
        openai(
            "litellm.UnsupportedParamsError: openai does not support parameters: ['logprobs', 'top_logprobs'], for "
            "model=o3-mini. To drop these, set `litellm.drop_params=True`",
            None,
            "400",
        ),
        ADAPT,
        options=LOGPROBS | TOP,
    ),
    "LiteLLM: budget": Refusal(
        400,
        openai("Budget has been exceeded! Current cost: 26.07, Max budget: 0.25", "budget_exceeded", "400"),
        STOP,
        "credit",
    ),
    "LiteLLM: no credit behind it": Refusal(
        429, openai(f"litellm.RateLimitError: OpenAIException - {NO_QUOTA}", None, "429"), STOP, "credit"
    ),
    "LiteLLM: key": Refusal(
        401,
        openai("Authentication Error, Invalid proxy server token passed.", "token_not_found_in_db", "401", "key"),
        STOP,
        "api_key",
    ),
    "LiteLLM: model": Refusal(
        400, openai("/chat/completions: Invalid model name passed in model=m.", "None", "400", "None"), ADAPT, "model"
    ),
    "LiteLLM: later": Refusal(
        429, openai("No deployments available for selected model, Try again in 5 seconds.", None, "429"), WAIT
    ),
    "LiteLLM: filter": Refusal(
        400,
        openai(f"litellm.ContentPolicyViolationError: AzureException - {FILTERED}", None, "400"),
        ADAPT,
        "HTTP 400",
    ),
    "TGI: too long": Refusal(
        422,
        {
            "error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 1512. Given: 1500",
            "error_type": "validation",
        },
        SKIP,
        "too long",
    ),
    "TGI: fewer": Refusal(
        422,
        {"error": "Input validation error: `top_n_tokens` must be <= 5. Given: 20", "error_type": "validation"},
        ADAPT,
        options=TOP,
    ),
    "TGI: temperature": Refusal(
        422,
        {"error": "Input validation error: `temperature` must be strictly positive", "error_type": "validation"},
        ADAPT,
        options=TEMPERATURE,
    ),
    "TGI: overloaded": Refusal(429, {"error": "Model is overloaded", "error_type": "overloaded"}, WAIT),
    "DashScope: thinking": Refusal(
        400,
        openai(
            "parameter.enable_thinking must be set to false for non-streaming calls", code="invalid_parameter_error"
        ),
        ADAPT,
        "enable_thinking",
        options=frozenset({"enable_thinking"}),
    ),
    "DashScope: filter": Refusal(
        400,
        openai("Input data may contain inappropriate content.", code="data_inspection_failed"),
        SKIP,
        "content filter",
    ),
    "DashScope: no credit": Refusal(
        400,
        openai("Access denied, please make sure your account is in good standing.", code="Arrearage"),
        STOP,
        "credit",
    ),
    "DeepSeek: no credit": Refusal(
        402, openai("Insufficient Balance", "unknown_error", "invalid_request_error"), STOP, "credit"
    ),
    "Together: fewer": Refusal(
        422, openai("5 is greater than the maximum of 1 - 'logprobs'", param="logprobs"), ADAPT, options=LOGPROBS
    ),
    "Groq: too large": Refusal(
        413,
        openai("Request too large for model `m`: Limit 6000, Requested 12345", "tokens", "rate_limit_exceeded"),
        SKIP,
        "too long",
    ),
    "OpenAI: country": Refusal(
        403,
        openai("Country, region, or territory not supported", code="unsupported_country_region_territory"),
        STOP,
        "HTTP 403",
    ),
    "Anthropic: spent": Refusal(
        400, anthropic("invalid_request_error", "You have reached your specified API usage limits."), STOP, "credit"
    ),
    "xAI: log-probabilities": Refusal(
        400,
        {"code": "invalid-argument", "error": "Model m does not support parameter logprobs."},
        ADAPT,
        options=LOGPROBS,
    ),
    "xAI: too long": Refusal(400, {"error": "This model's maximum prompt length is 8192"}, SKIP, "too long"),
    "a proxy": Refusal(502, "<html><body>Bad Gateway</body></html>", WAIT, "502"),
    "FastAPI": Refusal(
        422,
        {"detail": [{"type": "int_parsing", "loc": ["body", "max_tokens"], "msg": "Input should be a valid integer"}]},
        ADAPT,
        options=frozenset({"max_tokens"}),
    ),
    "nothing": Refusal(400, None, ADAPT, "HTTP 400"),
    **{
        f"{server}: no images": Refusal(status, body, SKIP, "takes no images")
        for server, (status, body) in {
            "OpenAI": (
                400,
                openai("Invalid content type. image_url is only supported by certain models.", param="messages.[0]"),
            ),
            "OpenRouter": (404, openrouter(404, "No endpoints found that support image input")),
            "DeepSeek": (
                400,
                openai(
                    "Failed to deserialize the JSON body: messages[0]: unknown variant `image_url`, expected `text`"
                ),
            ),
            "vLLM": (400, vllm("At most 0 image(s) may be provided in one request.")),
            "vLLM: text model": (400, vllm("Qwen/Qwen3-8B is not a multimodal model")),
            "llama.cpp": (
                500,
                {"error": {"code": 500, "message": "image input is not supported - hint: provide the mmproj"}},
            ),
            "Ollama": (400, {"error": "this model does not support image input (ref: b8bd630e)"}),
            "Ollama: old": (500, {"error": "this model is missing data required for image input"}),
            "LM Studio": (400, {"error": "Model does not support images. Please use a model that does."}),
            "Groq": (
                400,
                openai("'messages.0' : for 'role:user' the following must be satisfied: content must be a string"),
            ),
            "Mistral": (400, {"message": "Image input is not enabled for this model", "type": "invalid_request_error"}),
            "Gemini": (400, google(400, "INVALID_ARGUMENT", "Image input modality is not enabled for models/m")[0]),
            "Bedrock": (400, {"message": "This model doesn't support the image content block that you provided."}),
            "xAI": (400, {"error": "Image inputs are not supported by this model."}),
        }.items()
    },
    **{
        f"{server}: this image": Refusal(status, body, SKIP, "could not use an image")
        for server, (status, body) in {
            "OpenAI": (400, openai("You uploaded an unsupported image.", code="invalid_image_format")),
            "OpenAI: URL": (400, openai("Timeout while downloading https://a/b.png.", code="invalid_image_url")),
            "Anthropic": (
                400,
                anthropic("invalid_request_error", "messages.0.content.1.image.source: image exceeds 5 MB"),
            ),
            "Anthropic: damaged": (400, anthropic("invalid_request_error", "Could not process image")),
            "Fireworks": (400, openai("Cannot decode or download image")),
            "vLLM": (400, vllm("cannot identify image file <_io.BytesIO object>")),
        }.items()
    },
    "vLLM: fewer images": Refusal(
        400, vllm("At most 1 image(s) may be provided in one request."), SKIP, "fewer images in one question"
    ),
}

# The same through AWS' own client, whose errors carry a nested response in the place of an HTTP one.
BEDROCK: dict[str, Refusal] = {
    "throttled": Refusal(
        429, ("ThrottlingException", "Too many tokens, please wait before trying again."), WAIT, "rate limit"
    ),
    "no access": Refusal(
        403, ("AccessDeniedException", "You don't have access to the model with the specified model ID."), STOP, "model"
    ),
    "key": Refusal(403, ("UnrecognizedClientException", "The security token included is invalid."), STOP, "api_key"),
    "expired": Refusal(403, ("ExpiredTokenException", "The security token included has expired"), STOP, "api_key"),
    "model": Refusal(400, ("ValidationException", "The provided model identifier is invalid."), ADAPT, "model"),
    "too long": Refusal(400, ("ValidationException", "Input is too long for requested model."), SKIP, "too long"),
    "log-probabilities": Refusal(
        400,
        ("ValidationException", "Malformed input request: #: extraneous key [logprobs] is not permitted"),
        ADAPT,
        options=LOGPROBS,
    ),
    "temperature": Refusal(
        400,
        ("ValidationException", "The model returned the following errors: `temperature` is deprecated for this model."),
        ADAPT,
        options=TEMPERATURE,
    ),
    "not ready": Refusal(429, ("ModelNotReadyException", "Model is not ready for inference."), WAIT),
    "slow": Refusal(408, ("ModelTimeoutException", "Model has timed out in processing the request."), WAIT, "in time"),
}
