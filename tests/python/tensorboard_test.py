"""The real tensorboard package reads what rmoe::io::EventWriter writes, and notices a flipped byte.

usage: tensorboard_test.py WRITE_EVENTS   (the program built from tests/support/write_events.cpp)
"""

import math
import os
import subprocess
import sys
import tempfile
import unittest

from tensorboard.backend.event_processing import event_accumulator, event_file_loader
from tensorboard.util import tensor_util

PROGRAM = sys.argv.pop(1) if len(sys.argv) > 1 else None


def events_of(path):
    return list(event_file_loader.LegacyEventFileLoader(path).Load())


class TensorboardTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        out = subprocess.run([PROGRAM, cls.folder.name], check=True, capture_output=True, text=True)
        cls.first, cls.second = out.stdout.split()
        cls.events = event_accumulator.EventAccumulator(cls.folder.name, size_guidance={"scalars": 0, "tensors": 0})
        cls.events.Reload()

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def scalars(self, tag):
        return [(e.step, e.value) for e in self.events.Scalars(tag)]

    def test_every_event_of_a_file_is_read(self):
        events = events_of(self.first)
        self.assertEqual(len(events), 102)
        self.assertEqual(events[0].file_version, "brain.Event:2")
        for step, event in enumerate(events[1:101]):
            self.assertEqual(event.step, step)
            self.assertEqual(event.wall_time, 1000 + step)
            (value,) = event.summary.value
            self.assertEqual(value.tag, "train/loss")
            self.assertAlmostEqual(value.simple_value, 10 / (step + 1), delta=1e-6)
        self.assertAlmostEqual(events[101].wall_time, os.path.getmtime(self.first), delta=600)

    def test_a_resumed_run_replaces_the_steps_it_repeats(self):
        expected = [(step, 10 / (step + 1)) for step in range(50)] + [(step, -step) for step in range(50, 60)]
        read = self.scalars("train/loss")
        self.assertEqual([step for step, _ in read], [step for step, _ in expected])
        for (_, value), (_, wanted) in zip(read, expected):
            self.assertAlmostEqual(value, wanted, delta=1e-6)
        self.assertEqual(self.scalars("eval/bpc"), [])

    def test_large_steps_and_values_that_are_not_finite(self):
        self.assertEqual(self.scalars("large step"), [(2**40, 1.0)])
        (_, nan), (_, infinity) = self.scalars("not finite")
        self.assertTrue(math.isnan(nan))
        self.assertEqual(infinity, math.inf)

    def test_text(self):
        tag = "samples/text_summary"
        self.assertIn(tag, self.events.PluginTagToContent("text"))
        texts = [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in self.events.Tensors(tag)]
        self.assertEqual([(step, text.shape) for step, text in texts], [(55, (1,)), (57, (1,))])
        self.assertEqual(texts[0][1][0].decode(), "In the beginning | God \u2014 " + "x" * 300)
        self.assertEqual(texts[1][1][0], b"")

    def test_checksums_are_checked(self):
        whole = len(events_of(self.first))
        with open(self.first, "rb") as file:
            good = file.read()
        for at in (8, 12, 40, len(good) - 1):  # CRC of the length, data of the version, of an event, last CRC
            bad = bytearray(good)
            bad[at] ^= 1
            path = os.path.join(self.folder.name, "flipped")
            with open(path, "wb") as file:
                file.write(bad)
            self.assertLess(len(events_of(path)), whole, f"byte {at}")
            os.remove(path)

    def test_a_torn_last_event_is_ignored(self):
        with open(self.first, "rb") as file:
            good = file.read()
        path = os.path.join(self.folder.name, "torn")
        with open(path, "wb") as file:
            file.write(good[:-5])
        self.assertEqual(len(events_of(path)), 101)
        os.remove(path)


if __name__ == "__main__":
    if PROGRAM is None:
        sys.exit(__doc__)
    unittest.main()
