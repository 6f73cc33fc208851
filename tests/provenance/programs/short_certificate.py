"""Writes a certificate of three steps in place of 50: a comparison takes their number from the file."""

import sys
from pathlib import Path

from lockedenv.prefix.records import read_prefix
from lockedenv.provenance.certificate.document import certificate_text
from lockedenv.provenance.certificate.make import make_certificate

if __name__ == "__main__":
    installed = read_prefix(Path(sys.prefix))
    certificate = make_certificate(installed, [], "cpu", steps=3)
    Path(sys.argv[1]).write_text(certificate_text(certificate))
