#!/usr/bin/python3
"""CRIU's own image tool prints every image that predump writes of a process, and finds in it what
the process has; `predump show` tells the same of these and of images that crit has made."""
import json
import os
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import BUILD, Lab  # noqa: E402

STORE_PROCESS = os.path.join(BUILD, "tests", "store_process")
PREDUMP = os.path.join(BUILD, "bin", "predump")


def decode(path):
    """The entries of an image, by `crit decode`."""
    done = subprocess.run(["crit", "decode", "-i", path], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise AssertionError(f"crit decode -i {path}: {done.stderr}")
    return json.loads(done.stdout)


def encode(path, magic, *entries):
    """Makes an image of these entries by `crit encode`."""
    text = json.dumps({"magic": magic, "entries": entries})
    done = subprocess.run(["crit", "encode", "-o", path], input=text, capture_output=True, text=True,
                          timeout=60)
    if done.returncode != 0:
        raise AssertionError(f"crit encode of {path}: {done.stderr}")


def show(directory, *options):
    return subprocess.run([PREDUMP, "show", "-D", directory, *options], capture_output=True,
                          text=True, timeout=60)


@unittest.skipUnless(shutil.which("crit"), "crit (package criu) is not installed")
class Crit(unittest.TestCase):
    def setUp(self):
        self.lab = Lab()
        self.addCleanup(self.lab.close)

    def store(self, name, *options):
        workload = self.lab.workload(name, *options)
        directory = self.lab.directory("images")
        command = [STORE_PROCESS, str(workload.pid), directory, "--leave-running"]
        for _ in range(20):
            stored = workload.host.run(command, timeout=120)
            # "files" has a file of /proc open now and then, which cannot move.
            if "a file of /proc" not in stored.stderr:
                break
        self.assertEqual(stored.returncode, 0, stored.stderr)
        images = {entry[:-len(".img")]: decode(os.path.join(directory, entry))
                  for entry in os.listdir(directory)
                  if entry.endswith(".img") and not entry.startswith("pages-")}
        self.assertTrue(workload.alive())
        return workload, directory, images

    def check_process(self, images, pid):
        inventory = images["inventory"]["entries"][0]
        self.assertEqual(images["inventory"]["magic"], "INVENTORY")
        self.assertEqual(inventory["img_version"], 2)
        self.assertTrue(inventory["fdinfo_per_id"])
        self.assertNotIn("root_cg_set", inventory)
        [tree] = images["pstree"]["entries"]
        self.assertEqual((tree["pid"], tree["ppid"]), (pid, 0))
        for tid in tree["threads"]:
            [core] = images[f"core-{tid}"]["entries"]
            self.assertEqual(core["mtype"], "X86_64")
            self.assertEqual("tc" in core, tid == pid)
            self.assertNotIn("cg_set", core["thread_core"])
            self.assertEqual(core["thread_info"]["gpregs"]["cs"], 0x33)
        [memory] = images[f"mm-{pid}"]["entries"]
        self.assertLessEqual(len(memory["mm_saved_auxv"]), 44)
        self.assertEqual(sum(vma["status"] & 0x8 != 0 for vma in memory["vmas"]), 1)
        return tree

    def test_a_process_with_threads(self):
        workload, _, images = self.store("threads", "--threads", "3")
        tree = self.check_process(images, workload.pid)
        self.assertGreater(len(tree["threads"]), 3)
        self.assertEqual(images["seccomp"]["entries"], [{}])
        self.assertIn("monotonic", images["timens-0"]["entries"][0])

    def test_a_process_with_each_kind_of_descriptor(self):
        workload, directory, images = self.store("files")
        tree = self.check_process(images, workload.pid)
        files = {entry["id"]: entry for entry in images["files"]["entries"]}
        files_id = images[f"ids-{workload.pid}"]["entries"][0]["files_id"]
        descriptors = images[f"fdinfo-{files_id}"]["entries"]
        self.assertGreater(len(descriptors), 20)
        for descriptor in descriptors:
            self.assertEqual(files[descriptor["id"]]["type"], descriptor["type"])
        kinds = {descriptor["type"] for descriptor in descriptors}
        self.assertLessEqual({"REG", "PIPE", "INETSK", "UNIXSK", "EVENTFD", "EVENTPOLL", "SIGNALFD",
                              "TIMERFD"}, kinds)
        pipes = {entry["pipe"]["pipe_id"] for entry in files.values() if entry["type"] == "PIPE"}
        for data in images["pipes-data"]["entries"]:
            self.assertIn(data["pipe_id"], pipes)
        for packet in images["sk-queues"]["entries"]:
            self.assertEqual(files[packet["id_for"]]["type"], "UNIXSK")
        pagemap = images[f"pagemap-{workload.pid}"]["entries"]
        pages = sum(entry["nr_pages"] for entry in pagemap[1:])
        size = os.path.getsize(os.path.join(directory, f"pages-{pagemap[0]['pages_id']}.img"))
        self.assertEqual(size, pages * 4096)
        self.check_shown(directory, images, tree, pages)

    def check_shown(self, directory, images, tree, pages):
        shown = json.loads(show(directory, "--json").stdout)
        self.assertEqual((shown["kind"], shown["captured-by"]), ("process", "predump"))
        self.assertEqual(shown["kernel"], os.uname().release)
        process = shown["process"]
        self.assertEqual(process["pid"], tree["pid"])
        self.assertIn("files --report", process["command-line"])
        files_id = images[f"ids-{tree['pid']}"]["entries"][0]["files_id"]
        self.assertEqual([(entry["fd"], entry["kind"]) for entry in process["descriptors"]],
                         [(entry["fd"], entry["type"])
                          for entry in images[f"fdinfo-{files_id}"]["entries"]])
        self.assertEqual(process["blockers"], [])
        [memory] = shown["memory"]
        self.assertEqual((memory["pid"], memory["pages"]), (tree["pid"], pages))
        text = show(directory)
        self.assertEqual(text.returncode, 0, text.stderr)
        self.assertIn("a whole process", text.stdout)
        for name in os.listdir(directory):
            if not name.startswith(("pages-", "parent")):
                printed = show(directory, "--image", name)
                self.assertEqual(printed.returncode, 0, printed.stderr)
        self.check_chain(directory, tree["pid"], pages)

    def check_chain(self, parent, pid, pages):
        """A round that crit makes on top of the stored process."""
        directory = self.lab.directory("round")
        entries = [{**entry, "flags": 1} for entry in
                   decode(os.path.join(parent, f"pagemap-{pid}.img"))["entries"][1:]]
        encode(os.path.join(directory, f"pagemap-{pid}.img"), "PAGEMAP", {"pages_id": 9}, *entries)
        with open(os.path.join(directory, "pages-9.img"), "wb"):
            pass
        encode(os.path.join(directory, "inventory.img"), "INVENTORY", {"img_version": 0})
        os.symlink(parent, os.path.join(directory, "parent"))
        shown = show(directory, "--json")
        self.assertEqual(shown.returncode, 0, shown.stderr)
        shown = json.loads(shown.stdout)
        self.assertEqual(shown["kind"], "rounds")
        [memory] = shown["memory"]
        self.assertEqual([(link["pages"], link["pages-in-parent"]) for link in memory["chain"]],
                         [(0, pages), (pages, 0)])
        os.unlink(os.path.join(directory, "parent"))
        self.check_refused(show(directory), "parent")

    def check_refused(self, done, *words):
        self.assertEqual(done.returncode, 1)
        self.assertEqual(done.stdout, "")
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)

    def test_what_cannot_be_shown_is_refused_in_one_line(self):
        directory = self.lab.directory("nothing")
        self.check_refused(show(directory), directory, "no image directory")
        self.check_refused(show(directory + "/none"), "none")
        encode(os.path.join(directory, "inventory.img"), "INVENTORY", {"img_version": 3})
        self.check_refused(show(directory), "newer")
        self.check_refused(show(directory, "--image", "mm-1.img"), "mm-1.img")
        self.check_refused(show(directory, "--image", "../inventory.img"), "../inventory.img")
        self.check_refused(show(directory, "--image", "strange"), "strange")
        with open(os.path.join(directory, "inventory.img"), "wb") as image:
            image.write(b"no image")
        self.check_refused(show(directory), "inventory.img")
        self.check_refused(show(directory, "--image", "inventory"), "inventory.img")


if __name__ == "__main__":
    unittest.main(verbosity=2)
