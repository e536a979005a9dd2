FROM a
RUN one \

   
  two \
	
# c
  # d
  three
RUN four
