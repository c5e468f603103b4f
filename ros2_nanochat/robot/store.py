"""Keeps conversations across restarts: after each turn, a robot's history is on disk before the turn is
announced.

The file is replaced atomically (written under another name, synced, renamed), so that a crash or a power cut
leaves either the old or the new one. A damaged file is renamed and the robot starts afresh; a file without
read permission is a configuration error. Only one process at a time may use a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

from ros2_nanochat.chat.message import PixelsGone
from ros2_nanochat.chat.storage import MAX_BYTES, write_image
from ros2_nanochat.errors import one_line
from ros2_nanochat.files import open_regular, read_bounded, remove_temporary, sync_folder, write_whole
from ros2_nanochat.robot.state_lock import StateLock

_UNSAVED_IMAGES = 8  # images whose pixels are kept while they cannot be written


class ConversationStore:
    """The conversation file of one robot.

    Args:
        folder: The folder for all robots.
        name: Name of the robot with its node, as on the graph: no two conversations share it.
        log: Has `info`, `warning` and `error`.
        keep_kv: Also store the keys and values of the conversation.

    Attributes:
        undeleted: A picture that is no longer shown and cannot be deleted, and why; '' if there is none.

    Raises:
        ValueError: The folder cannot be written to, or another process uses the file.
    """

    def __init__(self, folder: str | os.PathLike, name: str, log, keep_kv: bool = False):
        self.folder = Path(folder).expanduser()
        self.path = self.folder / (name.strip('/').replace('/', '.') + '.json')
        self.keep_kv = keep_kv
        self.undeleted = ''
        self._log = log
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
            self._lock = StateLock(self.folder / f'.{self.path.stem}.lock')
        except OSError as error:
            where = f' ({error.filename})' if str(error.filename).endswith('.lock') else ''
            raise ValueError(
                f'state_dir={str(folder)!r} cannot be written to: {error.strerror}{where}'
            ) from error
        for file in (self.path, self._prompt_file):
            remove_temporary(self.folder, file.name)
        if not keep_kv:
            self.drop_kv()
        with contextlib.suppress(OSError):
            self._kv_part.unlink(missing_ok=True)
            if self._images.is_dir():
                self._images.chmod(0o700)  # earlier versions let others read them

    def close(self) -> None:
        """Let another process use the file. You may call this twice."""
        self._lock.release()

    def restore(self, history, system_prompt: str | None) -> None:
        """Fill a new history from disk. A damaged file is renamed.

        If the parameter has changed since the conversation was saved, the new system prompt applies.
        Otherwise the conversation keeps its system prompt, which a reset may have set.

        Args:
            history: The new `ChatHistory`.
            system_prompt: The parameter, None if it is not set.

        Raises:
            ValueError: The file cannot be read or renamed.
        """
        try:
            open_regular(self.path).close()
        except FileNotFoundError:
            self._drop_images(history)
            return
        except OSError as error:
            raise self._unreadable(self.path, error) from error
        try:
            replaced = history.load(self.path, without_images=True)
            for text in replaced:
                self._log.warning(f'{self.path}: {text[1:-1]}')
            if not replaced:  # else the file may name pictures that the history no longer shows
                self._drop_images(history)
        except OSError as error:
            raise self._unreadable(error.filename, error) from error
        except Exception as error:  # a damaged file may raise anything
            self._set_aside(error)
            return
        self._log.info(f'continuing the conversation in {self.path}: {len(history)} messages')
        wanted = history.template.system_prompt if system_prompt is None else system_prompt
        if (wanted or '') == history.system_prompt:
            return
        if self._saved_prompt() not in (None, system_prompt or ''):
            history.system_prompt = wanted
            self._log.info(
                'system_prompt has changed since the conversation was saved: it goes on with'
                f' {_short(wanted)}'
            )
        else:
            self._log.info(
                f'the conversation keeps its system prompt, {_short(history.system_prompt)}: reset it, or'
                ' change system_prompt, to replace that'
            )

    def _unreadable(self, path, error: OSError) -> ValueError:
        return ValueError(
            f'state_dir={str(self.folder)!r}: {path} cannot be read: {error.strerror}. Make it readable for'
            ' this user, or choose another state_dir; nothing was changed'
        )

    def _set_aside(self, error: Exception) -> None:
        aside = self.path.with_name(f'{self.path.name}.damaged-{time.strftime("%Y%m%d-%H%M%S")}')
        try:
            self.path.rename(aside)
        except OSError as failure:
            raise ValueError(
                f'the saved conversation {self.path} is damaged ({one_line(error)}) and cannot be set aside: '
                f'{failure.strerror}'
            ) from failure
        self._log.error(
            f'the saved conversation is damaged and was set aside as {aside}; starting afresh'
            f' ({one_line(error)})'
        )

    def delete(self) -> None:
        """Delete the conversation and its pictures from disk (see `undeleted`).

        Raises:
            OSError: The conversation cannot be deleted.
        """
        if _unlink(self.path):
            sync_folder(self.folder)
        self._drop_images(())

    def save(self, history, system_prompt: str | None) -> None:
        """Write the history and the parameter system_prompt to disk.

        Raises:
            OSError: That fails; the old file stays.
        """
        self._write_images(history)
        history.save(self.path)
        if self._saved_prompt() != (
            system_prompt or ''
        ):  # after the history: if it crashes in between, the new prompt is applied again
            write_whole(str(self._prompt_file), json.dumps(system_prompt or '').encode())
        self._drop_images(history)

    def _write_images(self, history) -> None:
        """Write the history's pictures to disk and free their pixels.

        If that fails, keep the latest few for the next attempt.
        """
        unsaved = [
            message
            for message in history
            if message.image is not None and not isinstance(message.image, (str, PixelsGone))
        ]
        try:
            for message in unsaved:
                message.keep_as(write_image(message.image, self.path))
        except OSError:
            for message in unsaved[:-_UNSAVED_IMAGES]:
                if not isinstance(message.image, str):
                    message.let_go()
            raise

    def save_kv(self, history) -> None:
        """Write the conversation's keys and values to disk, if `keep_kv` is set.

        The file is not synced: damage by a power cut is detected by its digest and costs only a prefill.
        """
        if not self.keep_kv or history.kv_cache is None:
            return
        part = self._kv_part
        try:
            data = history.model.save_kv(history.kv_cache)
            if data is not None:
                part.unlink(missing_ok=True)
                with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'wb') as file:
                    file.write(data)
                part.rename(self._kv_file)
        except Exception as error:  # it only saves time
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            self._log.warning(
                'the KV of the conversation is not on disk, a restart would read the conversation again: '
                + one_line(error)
            )

    def restore_kv(self, history) -> None:
        """Load the KV cache from disk into a history that has none, if it belongs to this model."""
        if not self.keep_kv:
            return
        try:
            with open_regular(self._kv_file) as file:
                history.kv_cache = history.model.load_kv(file.read())
        except FileNotFoundError:
            pass
        except Exception as error:  # it only saves time
            self._log.info(f'the KV on disk is not used, the conversation is read again: {one_line(error)}')

    def drop_kv(self) -> bool:
        """Delete the keys and values from disk. Files that cannot be deleted are logged.

        Returns:
            Whether none is left.
        """
        done = True
        for path in (self._kv_file, self._kv_part):
            try:
                _unlink(path)
            except OSError as error:
                done = False
                self._log.error(
                    f'{path} holds the KV of a conversation and cannot be deleted: {error.strerror}'
                )
        return done

    @property
    def _kv_file(self) -> Path:
        return self.path.with_suffix('.kv')

    @property
    def _kv_part(self) -> Path:
        return self.path.with_suffix('.kv-part')

    @property
    def _prompt_file(self) -> Path:
        return self.path.with_suffix('.prompt')

    def _saved_prompt(self) -> str | None:
        try:
            prompt = json.loads(read_bounded(self._prompt_file, MAX_BYTES))
        except (OSError, ValueError, RecursionError):
            return None
        return prompt if isinstance(prompt, str) else None

    @property
    def _images(self) -> Path:
        return self.path.with_name(self.path.name + '.images')

    def _drop_images(self, history) -> None:
        """Delete the image files that no message shows any more. Those that cannot be deleted are in
        `undeleted`; the next turn tries again.
        """
        self.undeleted = ''
        shown = {os.path.basename(message.image) for message in history if isinstance(message.image, str)}
        try:
            if not self._images.is_dir():
                return
            entries = list(os.scandir(self._images))
        except OSError as error:
            self.undeleted = f'{self._images}: {error.strerror}'
            return
        for entry in entries:
            try:
                # File managers store thumbnails in folders.
                if entry.name not in shown and not entry.is_dir():
                    os.unlink(entry.path)
            except FileNotFoundError:
                pass
            except OSError as error:
                self.undeleted = f'{entry.path}: {error.strerror}'


def _unlink(path: Path) -> bool:
    """Delete a file if it exists, and return whether it did. (`unlink(missing_ok=True)` fails on a read-only
    disk even if there is no file.)
    """
    there = os.path.lexists(path)
    if there:
        path.unlink(missing_ok=True)
    return there


def _short(text: str | None) -> str:
    return repr(text if len(text) <= 60 else text[:57] + '...') if text else 'none'
