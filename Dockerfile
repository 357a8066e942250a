# The whole artifact on a CPU. The build needs the network, a container does not.
#
#   docker build --tag dph .
#   docker run --init --network none --name dph-cpu dph            # as ./run_all.sh; dph smoke is its smallest form
#   docker cp dph-cpu:/home/dph/dph/artifacts/cpu .                # its results
#   docker run --init --network none --rm dph test -m "not slow"   # the tests that check the image
FROM python:3.11-slim-bookworm

RUN useradd --create-home --uid 1000 dph
USER dph
WORKDIR /home/dph/dph
COPY --chown=dph:dph . .
# Sets up and says pytest's version; every other command of ./run_all.sh on a CPU finds that set-up ready.
RUN ./run_all.sh test --version
ENV HF_HUB_OFFLINE=1

ENTRYPOINT ["./run_all.sh"]
CMD ["cpu"]
