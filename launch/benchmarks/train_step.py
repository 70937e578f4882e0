"""placeholder"""


def run(full, threads):
    return []
