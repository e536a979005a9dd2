# escape=`
FROM a
RUN one `
  two
RUN path\
USER x
RUN a `` 
USER y
