"""results.json: a list of records, whole on disk after each of them."""

import collections
import json
import os
import threading


class Results:
    """The file is read once and written anew, beside itself and then in its place, whenever something is added."""

    def __init__(self, path):
        self.path, self.lock = path, threading.Lock()
        self.all = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def add(self, *records):
        with self.lock:
            self.all.extend(records)
            # A line a record, so that a change reads well.
            text = ",\n".join(json.dumps(record, sort_keys=True) for record in self.all)
            partial = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            with open(partial, "w", encoding="utf-8") as file:
                file.write(f"[\n{text}\n]\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)

    def counts(self, first):
        """How many records there are of each status, from the `first` on."""
        return collections.Counter(record["status"] for record in self.all[first:])
