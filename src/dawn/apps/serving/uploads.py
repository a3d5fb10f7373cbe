"""A multipart request → the two files in a folder and the options: counted, timed and probed as it comes in."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, BinaryIO

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from dawn import media
from dawn.apps.serving.answers import Refusal
from dawn.apps.serving.records import JobOptions
from dawn.apps.serving.service import INPUTS, Service, failure
from dawn.apps.serving.settings import ServeSettings
from dawn.config import parse
from dawn.errors import ConfigError, InputError
from dawn.media.files import output_error
from dawn.options import PORTRAIT, SPEECH

MAX_FIELD_BYTES = 1024
LINGER_S = 5.0
"""A refused upload is read on for so long, or the client would see a broken connection instead of the answer."""


def form_schema() -> dict[str, Any]:
    """JSON schema of the form, from the options themselves."""
    schema = JobOptions.model_json_schema()
    for name, words in (("speech", SPEECH), ("portrait", PORTRAIT)):
        file = {"type": "string", "format": "binary", "description": words}
        schema["properties"] = {name: file, **schema["properties"]}
    schema["required"] = list(INPUTS)
    return schema


async def receive(request: Request, settings: ServeSettings, folder: Path) -> JobOptions:
    """Read the request into ``folder``. Raises Refusal, ConfigError for options, OutputError for a full disk."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise Refusal(
            415, "UnsupportedMediaType", f"content type {kind!r}: send multipart/form-data with portrait and speech"
        )
    announced = request.headers.get("content-length", "")
    try:
        async with asyncio.timeout(settings.upload_timeout_s):
            if announced.isdecimal() and int(announced) > settings.max_upload_bytes:
                raise _too_large(settings)
            form = await _parsed(request, settings)
    except TimeoutError as error:
        raise Refusal(
            408,
            "TooSlow",
            f"the upload took more than {settings.upload_timeout_s:g} s; send smaller files",
            Connection="close",
        ) from error
    except Refusal as error:
        if error.status == 413:
            await _linger(request)
        raise
    try:
        return await _kept(form, folder)
    finally:
        await form.close()


async def _parsed(request: Request, settings: ServeSettings) -> FormData:
    async def counted() -> AsyncGenerator[bytes, None]:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > settings.max_upload_bytes:
                raise _too_large(settings)
            yield chunk

    parser = MultiPartParser(
        request.headers,
        counted(),
        max_files=len(INPUTS),
        max_fields=len(JobOptions.model_fields),
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise Refusal(400, "FormError", f"the form cannot be read: {error.message}") from error
    except (KeyError, UnicodeDecodeError, LookupError) as error:
        raise Refusal(
            400, "FormError", "the form cannot be read: its boundary or encoding is wrong; send it anew"
        ) from error
    except OSError as error:
        raise output_error("upload", error) from error


def _too_large(settings: ServeSettings) -> Refusal:
    return Refusal(
        413,
        "TooLarge",
        f"the upload is larger than {settings.max_upload_mb:g} MB; send smaller files",
        Connection="close",
    )


async def _linger(request: Request) -> None:
    try:
        async with asyncio.timeout(LINGER_S):
            while (await request.receive()).get("more_body"):
                pass
    except TimeoutError:
        pass


async def _kept(form: FormData, folder: Path) -> JobOptions:
    """The parts of the form: files are copied under names of our own, the rest are options."""
    names = [name for name, _ in form.multi_items()]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"field {name!r} is there {names.count(name)} times; send it once")
    values = {}
    for name, value in form.multi_items():
        if name in INPUTS and isinstance(value, UploadFile):
            await asyncio.to_thread(_copy, value.file, folder / name)
        elif name in INPUTS or isinstance(value, UploadFile):
            reason = "is no file; send one" if name in INPUTS else f"is a file; only {' and '.join(INPUTS)} are"
            raise ConfigError(f"field {name!r} {reason}")
        elif value.strip() not in ("", "null"):
            values[name] = _typed(value.strip())
    options = parse(JobOptions, values, "field")
    for name in INPUTS:
        if not (folder / name).exists():
            raise ConfigError(f"field {name!r} is missing: send portrait, a picture, and speech, a sound file")
    return options


def _typed(text: str) -> Any:
    """Numbers and truth values, in the notation of JSON, as what they are; everything else as text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float) else text


def _copy(source: BinaryIO, target: Path) -> None:
    try:
        source.seek(0)
        with target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except OSError as error:
        raise output_error(target.name, error) from error


async def probe(service: Service, folder: Path, options: JobOptions) -> None:
    """Read both files as the job will. Raises InputError, ConfigError; faces are looked for when the job's turn comes."""
    settings = service.settings

    def look() -> None:
        try:
            media.read_image(folder / "portrait", settings.max_pixels)
            media.read_speech(folder / "speech", settings.max_seconds, options.allow_silence)
        except InputError as error:
            raise type(error)(failure(error, folder).message) from error

    service.model.checked_size(options.size, options.frame)
    async with service.probes:
        await asyncio.to_thread(look)
