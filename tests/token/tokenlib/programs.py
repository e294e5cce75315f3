"""Python programs for processes of their own: what may crash a process, or needs more than one, runs in these.

Each gets the token's folder as first argument.
"""

from pathlib import Path

_BEGIN = f"""
import asyncio, os, sys, threading
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from tokenlib.place import PIN, Place
from tokenlib.verify import check_signature, check_signs
from ca_server.domain.keys import KeyAlgorithm
from hsm.keys import open_keystore
place = Place(Path(sys.argv[1]))
"""

SIGN_WITH_THREADS = (
    _BEGIN
    + """
async def main():
    store = await open_keystore(place.options(threads=8, timeout=120.0))
    keys = [await store.find("rsa"), await store.find("p384"), await store.find("p256")]
    async def work(number):
        for _ in range(20):
            await check_signs(keys[number % 3])
    await asyncio.gather(*(work(number) for number in range(24)))
    await store.close()
    print("signed")
asyncio.run(main())
"""
)

LOG_IN_OFTEN = (
    _BEGIN
    + """
async def main():
    for _ in range(int(sys.argv[2])):
        store = await open_keystore(place.options())
        await check_signs(await store.find("p256"))
        await store.close()
    print("logged in")
asyncio.run(main())
"""
)

SPAWN_WHILE_OPEN = (
    _BEGIN
    + """
import multiprocessing

def child(folder):
    async def sign():
        store = await open_keystore(Place(folder).options())
        await check_signs(await store.find("p256"))
        await store.close()
    asyncio.run(sign())

async def main():
    store = await open_keystore(place.options())
    key = await store.find("p256")
    await check_signs(key)
    process = multiprocessing.get_context("spawn").Process(target=child, args=(place.folder,))
    process.start()
    while process.is_alive():
        await check_signs(key)
    assert process.exitcode == 0, process.exitcode
    assert store._token.generation == 1
    await store.close()
    print("both signed")

if __name__ == "__main__":
    asyncio.run(main())
"""
)
