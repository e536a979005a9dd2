FROM reasoning_base
COPY --chmod=755 entrypoint.sh /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
CMD ["bash"]
