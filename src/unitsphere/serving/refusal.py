"""What a client gets that cannot be served: a status, and one form of body for every endpoint, OpenAI's.

Code: https://platform.openai.com/docs/guides/error-codes
"""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from unitsphere.serving.batching import BatchFailed, QueueFull


class Refused(HTTPException):
    """A request that is not answered.

    Args:
        status: 4xx where the client can mend it, 5xx where it cannot.
        message: What was wrong and what would fit. Never holds a client's text, which may not be printable.
        param: The field that is to blame.
        code: A word for programs.
        headers: Of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    def response(self) -> Response:
        kind = "invalid_request_error" if self.status_code < 500 else "server_error"
        error = {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        return Response(to_json({"error": error}), self.status_code, self.headers, "application/json")


def handle_refusals(app: FastAPI) -> None:
    """Give every error of the application this form."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if not isinstance(error, Refused):  # a body that is no UTF-8 or nested too deeply; no such path or method
            detail = "the body is no JSON in UTF-8" if error.status_code == 400 else error.detail
            error = Refused(error.status_code, detail, headers=dict(error.headers or {}))
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"][1:]))[:100].encode(errors="replace").decode()  # a field may be nonsense
        if first["type"] == "json_invalid":
            return Refused(400, f"the body is no JSON: {first['ctx']['error']} at character {place}").response()
        if not place:
            return Refused(400, "the body must be a JSON object, and Content-Type: application/json").response()
        return Refused(400, f"{place}: {first['msg']}", param=place, code=first["type"]).response()

    @app.exception_handler(QueueFull)
    async def busy(request: Request, error: QueueFull) -> Response:
        how = {"Retry-After": str(error.seconds)}
        return Refused(429, "too much waits for the model (limits.queue_tokens)", None, "queue_full", how).response()

    @app.exception_handler(BatchFailed)
    async def batch_failed(request: Request, error: BatchFailed) -> Response:
        return Refused(500, "the model failed on a batch with these texts; its log says more").response()

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return Refused(500, "the server failed; its log says more").response()
